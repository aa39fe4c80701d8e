-- One transaction of ten rows, for the measurement of latency: five new rows and five that change.
\set n random(1, 900000000000)
\set existing random(1, 100000)
begin;
insert into item select (item_row(1000000000 + :n::bigint * 5 + i)).* from generate_series(0, 4) i on conflict do nothing;
update item set amount = (:n % 977 / 10.0)::text where id between :existing and :existing + 4;
commit;
