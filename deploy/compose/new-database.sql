-- The database that the new schema gets; `slackwater prepare` makes the rest.
create database new;
