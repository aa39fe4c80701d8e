-- One transaction of the shop's day, for pgbench: inserts, updates, deletes and changed keys, over every kind of table.
\set what random(1, 100)
\set customer random(1, 30000)
\set person random(1, 22000)
\set thing random(1, 2000)
\set hall random(1, 4)
\set n random(1, 9)
\set old random(1, 40000)

\if :what <= 30
-- somebody buys
begin;
with bought as (
  insert into orders (customer_id, placed, state, total)
  values (:customer, to_char(now(), 'YYYYMMDD'), 1, :thing * :n / 100.0) returning id
)
insert into order_lines select id, l, 'SKU-' || :thing, :n, :thing / 100.0 from bought, generate_series(1, :n) l;
update stock set pieces = pieces - :n, counted_at = now() where warehouse_id = :hall and sku = 'SKU-' || :thing;
commit;
\elif :what <= 45
-- orders move on, or are cancelled
update orders set state = case when :n = 9 then 9 else state % 3 + 1 end where id = :old;
\elif :what <= 55
-- a customer changes; the long note is not touched, and so not sent
update customers set credit = round((credit + :n / 7.0)::numeric, 2), status = (array[1, 1, 2, 9])[1 + :n % 4] where id = :customer;
\elif :what <= 60
-- a customer moves, or no longer says where to
update customers set street = case when :n > 2 then :n || ' New Street' end, zip = :thing::text where id = :customer;
\elif :what <= 65
-- somebody signs up
with joined as (
  insert into users (login, email) values ('new-' || gen_random_uuid(), 'new.' || :n || '@example.com') returning id
)
insert into profiles select id, 'fresh', 'Y' from joined where :n > 4 on conflict do nothing;
\elif :what <= 72
update users set last_seen = localtimestamp where id = :person;
\elif :what <= 76
insert into profiles select id, 'late', 'N' from users where id = :person
  on conflict (user_id) do update set bio = 'changed ' || :n, newsletter = 'Y';
\elif :what <= 78
delete from profiles where user_id = :person;
\elif :what <= 82
-- an old order is removed with its lines
begin;
delete from order_lines where order_id = :old;
delete from orders where id = :old;
commit;
\elif :what <= 85
-- an order is given another number: a key changes, here and in its lines
begin;
with renamed as (update orders set id = nextval('orders_id_seq') where id = :old returning id)
update order_lines set order_id = renamed.id from renamed where order_id = :old;
commit;
\elif :what <= 87
update coupons set code = upper(md5(random()::text)) where code = (select code from coupons where percent > :n * 10 limit 1);
\elif :what <= 93
insert into page_views values (localtimestamp, '/p/' || :thing, nullif(:n, 9));
\elif :what <= 95
delete from page_views where ctid = (select ctid from page_views where visitor = :n limit 1);
\elif :what <= 97
update products set tags = (array['red', 'red,blue', 'blue,steel,winter', ''])[1 + :n % 4] where sku = 'SKU-' || :thing;
\elif :what <= 99
insert into reviews (sku, stars, body) values ('SKU-' || :thing, 1 + :n % 5, repeat('good ', :n * 400));
\else
delete from reviews where id = (select min(id) from reviews);
\endif
