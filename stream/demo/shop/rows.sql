-- About 200,000 rows, times psql's variable `scale`. Deterministic: every run has the same shop.
\if :{?scale}
\else
\set scale 1
\endif

insert into customers (cust_nm, email, phone, fax, street, city, zip, country, status, birth_dt, credit, notes)
select (array['Grace','Alan','Edsger','Barbara','Donald','Radia','Tim','Frances'])[1 + n % 8] || ' '
         || (array['Hopper','Turing','Dijkstra','Liskov','Knuth','Perlman','Lee','Allen'])[1 + n / 8 % 8] || ' ' || n,
       case when n % 11 <> 0 then 'customer.' || n || '@example.com' end,
       '+49 30 ' || n, case when n % 100 = 0 then '+49 30 ' || n || '-9' end,
       case when n % 7 <> 0 then n % 200 || ' Canal Street' end, 'Hamburg', lpad((n % 99999)::text, 5, '0'),
       (array['DE','NL','DK','GB'])[1 + n % 4], (array[1,1,1,2,9])[1 + n % 5],
       case when n % 13 <> 0 then to_char(date '1940-01-01' + n % 22000, 'DD.MM.YYYY') end,
       round((n * 37 % 100000)::numeric / 100, 2),
       case when n % 500 = 0
         then (select string_agg(md5(n::text || i), ' ') from generate_series(1, 120) i)
         else 'prefers parcels' end
from generate_series(1, 30000 * :scale) n;

update customers set cust_nm = 'Ada Lovelace', email = 'ada@engine.example', street = '12 St James''s Square',
  city = 'London', zip = 'SW1Y 4JH', country = 'GB', status = 1, birth_dt = '10.12.1815', credit = 99.95
where id = 4711;

insert into users (login, email, last_seen)
select 'login' || n, 'user.' || n || '@example.com', timestamp '2024-01-01' + n * interval '7 minutes'
from generate_series(1, 20000 * :scale) n;

insert into profiles
select n, 'I am number ' || n, case when n % 3 = 0 then 'Y' else 'N' end
from generate_series(1, 20000 * :scale, 2) n;

insert into products
select 'SKU-' || n, 'Thing ' || n, (n * 17 % 9999) / 100.0,
       array_to_string((array['red','blue','cotton','steel','summer','winter'])[1 + n % 3 : 1 + n % 6], ',')
from generate_series(1, 2000) n;

insert into orders (customer_id, placed, state, total)
select 1 + n * 7919 % (30000 * :scale), to_char(date '2015-01-01' + n % 3650, 'YYYYMMDD'),
       (array[1,2,3,3,9])[1 + n % 5], (n * 31 % 50000) / 100.0
from generate_series(1, 40000 * :scale) n;

insert into order_lines
select o, l, 'SKU-' || 1 + (o * 3 + l) % 2000, 1 + o % 4, (o * l % 9999) / 100.0
from generate_series(1, 40000 * :scale) o, generate_series(1, 1 + o % 2) l;

insert into page_views
select timestamp(0) '2025-06-01' + n / 4 * interval '1 second', '/p/' || n % 50, nullif(n % 10, 0)
from generate_series(1, 20000 * :scale) n;

insert into countries values ('DE', 'Germany'), ('NL', 'Netherlands'), ('DK', 'Denmark'), ('GB', 'Great Britain');
insert into currencies values ('EUR', 'Euro', 2), ('GBP', 'Pound', 2), ('DKK', 'Krone', 2), ('JPY', 'Yen', 0);
insert into warehouses select n, 'Hall ' || n, point(n, -n / 3.0), date '2001-01-01' + n from generate_series(1, 20) n;
insert into suppliers (name, contact, vat_ids)
select 'Maker ' || n, jsonb_build_object('tel', n, 'note', E'a "quoted"\nline'), array['DE' || n, null, '{x}']
from generate_series(1, 500) n;
insert into carriers select n, 'Carrier ' || n, decode(md5(n::text), 'hex') from generate_series(1, 10) n;
insert into coupons
select upper(md5(n::text)), n % 100 + 0.50, daterange(date '2024-01-01' + n, case when n % 9 > 0 then date '2026-01-01' + n end)
from generate_series(1, 1000) n;
insert into stock
select w, 'SKU-' || n, n % 90, timestamptz '2025-01-01 00:00+00' + n * interval '1 minute'
from generate_series(1, 4) w, generate_series(1, 2000) n;
insert into reviews (sku, stars, body) select 'SKU-' || 1 + n % 2000, 1 + n % 5, repeat('fine ', n % 20) from generate_series(1, 3000) n;
insert into gift_cards select md5(n::text)::uuid, n * 100, n * interval '1 day 3 hours' from generate_series(1, 1000) n;
insert into tax_rates select c, make_date(y, 1, 1), y % 10 + 12.5 from unnest(array['DE','NL','DK','GB']) c, generate_series(2000, 2025) y;
insert into price_history select 'SKU-' || n, date '2025-01-01' + m, n / 7.0 + m from generate_series(1, 2000) n, generate_series(1, 2) m;
insert into "Store Hours" select n, time '08:30' + n * interval '5 minutes', time '18:00' from generate_series(0, 6) n;

analyze;
