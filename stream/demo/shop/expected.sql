-- What every table of the new schema must hold, as plain queries over the old one: one per table, columns in the new
-- table's order. Written by hand, in other words than the mapping's; nothing of slackwater is used here.

-- customer
select id, cust_nm, lower(email), phone, coalesce((array['active', 'suspended'])[status], 'closed'),
       make_date(split_part(birth_dt, '.', 3)::int, split_part(birth_dt, '.', 2)::int, split_part(birth_dt, '.', 1)::int),
       round(credit::numeric, 2), notes
from public.customers;

-- address
select id, street, city, zip, country from public.customers where num_nulls(street, city, zip, country) < 4;

-- account
select u.id, u.login, lower(u.email), timezone('UTC', u.last_seen), bio, newsletter is not distinct from 'Y'
from public.profiles p right join public.users u on u.id = p.user_id;

-- purchase
select id, customer_id,
       make_date(substr(placed, 1, 4)::int, substr(placed, 5, 2)::int, substr(placed, 7, 2)::int),
       (array['open', 'paid', 'shipped', null, null, null, null, null, 'cancelled'])[state], round(total::numeric, 2)
from public.orders;

-- purchase_line
select order_id, line_no, sku, qty, round(price::numeric, 2) from public.order_lines;

-- customer_sales
select c, count(*), sum(amount), max(make_date(left(d, 4)::int, substr(d, 5, 2)::int, right(d, 2)::int))
from (select customer_id as c, round(total::numeric, 2) as amount, placed as d from public.orders where state in (1, 2, 3)) o
group by c;

-- product
select sku, title, round(price::numeric, 2) from public.products;

-- product_tag
select sku, n, split_part(tags, ',', n::int) from public.products, generate_series(1::bigint, 9) n
where tags <> '' and n <= 1 + length(tags) - length(replace(tags, ',', ''));

-- page_view
select viewed_at, path, visitor from public.page_views;

-- countries
select code, name from public.countries;

-- currencies
select code, name, digits from public.currencies;

-- warehouses
select id, name, place, opened from public.warehouses;

-- suppliers
select id, name, contact, vat_ids from public.suppliers;

-- carriers
select id, name, price_list from public.carriers;

-- coupons
select code, percent, valid from public.coupons;

-- stock
select warehouse_id, sku, pieces, counted_at from public.stock;

-- reviews
select id, sku, stars, body from public.reviews;

-- gift_cards
select id, cents, used from public.gift_cards;

-- tax_rates
select country, since, rate from public.tax_rates;

-- price_history
select sku, changed_on, price from public.price_history;

-- Store Hours
select "Day", "opens at", "closes at" from public."Store Hours";
