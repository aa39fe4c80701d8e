-- The roles of slackwater, one login each. Give each a password (\password) or a certificate.
-- Once per server, by an administrator. REPLICATION is not inherited, so these are logins, not groups.
-- RDS, Aurora:  create role ... login; grant rds_replication to slackwater_capture, slackwater_operator;
-- Cloud SQL:    alter user ... with replication, as a member of cloudsqlsuperuser
-- Azure:        alter role ... with replication, as the server's administrator
do $$
begin
  if to_regrole('slackwater_capture') is null then create role slackwater_capture login replication; end if;
  if to_regrole('slackwater_apply') is null then create role slackwater_apply login; end if;
  if to_regrole('slackwater_backfill') is null then create role slackwater_backfill login; end if;
  if to_regrole('slackwater_operator') is null then create role slackwater_operator login replication; end if;
end $$;
-- To name who is in the way (pg_stat_activity), and, for the operator, to end it when asked to (--terminate-blockers).
grant pg_read_all_stats to slackwater_capture, slackwater_apply, slackwater_backfill, slackwater_operator;
grant pg_signal_backend to slackwater_operator;
