-- The shop as it should have been: people, addresses and accounts apart, real dates, exact money, states with names.

create type customer_status as enum ('active', 'suspended', 'closed');
create type purchase_state as enum ('open', 'paid', 'shipped', 'cancelled');

create table customer (
  id integer primary key,
  name text not null,
  email text,
  phone text,
  status customer_status not null,
  born date check (isfinite(born)),
  credit numeric(12, 2) not null,
  notes text
);

create table address (
  customer_id integer primary key references customer,
  street text, city text, zip text, country char(2)
);

create table account (
  id integer primary key,
  login varchar(40) not null,
  email text not null,
  last_seen timestamptz,
  bio text,
  newsletter boolean not null
);

create table purchase (
  id integer primary key,
  customer_id integer not null,
  placed_on date not null,
  state purchase_state not null,
  total numeric(12, 2) not null
);

create table purchase_line (
  purchase_id integer, line_no smallint, sku text not null, quantity integer not null, price numeric(12, 2) not null,
  primary key (purchase_id, line_no)
);

create table customer_sales (
  customer_id integer primary key, purchases bigint not null, turnover numeric(14, 2) not null, latest date not null
);

create table product (sku text primary key, title text not null, price numeric(12, 2) not null);

create table product_tag (sku text references product, place bigint, tag text not null, primary key (sku, place));

create table page_view (viewed_at timestamp(0) not null, path text not null, visitor integer);
alter table page_view replica identity full;  -- no key: the way back knows its rows by all of their columns

-- The dozen that stay as they are.
create table countries (code char(2) primary key, name text not null);
create table currencies (code char(3) primary key, name text not null, digits smallint not null);
create table warehouses (id integer primary key, name text not null, place point, opened date);
create table suppliers (id integer primary key, name text not null, contact jsonb, vat_ids text[]);
create table carriers (id integer primary key, name text not null, price_list bytea);
create table coupons (code text primary key, percent numeric(5, 2) not null, valid daterange not null);
create table stock (
  warehouse_id integer, sku text, pieces integer not null, counted_at timestamptz, primary key (warehouse_id, sku)
);
create table reviews (id bigint primary key, sku text not null, stars smallint not null, body text);
create table gift_cards (id uuid primary key, cents bigint not null, used interval);
create table tax_rates (country char(2), since date, rate numeric not null, primary key (country, since));
create table price_history (sku text, changed_on date, price real not null, primary key (sku, changed_on));
create table "Store Hours" ("Day" integer primary key, "opens at" time, "closes at" time);
