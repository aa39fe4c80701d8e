-- A shop's schema as it has grown since 1998: one wide table of customers, logins and profiles that are one person,
-- codes for states, dates that are text, money in floats, a log without a key, and a dozen tables that are fine.

create table customers (
  id serial primary key,
  cust_nm text not null,
  email text,
  phone text,
  fax text,                            -- nobody knows why
  street text, city text, zip text, country char(2),
  status smallint not null default 1,  -- 1 active, 2 suspended, 9 closed
  birth_dt text,                       -- 'DD.MM.YYYY'
  credit double precision not null default 0,
  notes text                           -- some are kilobytes long, and stored out of line
);

create table users (
  id serial primary key,
  login varchar(40) not null unique,
  email text not null,
  last_seen timestamp
);

create table profiles (
  user_id integer primary key,
  bio text,
  newsletter char(1) not null default 'N'  -- 'Y' or 'N'
);

create table orders (
  id serial primary key,
  customer_id integer not null,
  placed text not null,                -- 'YYYYMMDD'
  state smallint not null default 1,   -- 1 open, 2 paid, 3 shipped, 9 cancelled
  total double precision not null
);
create index on orders (customer_id);

create table order_lines (
  order_id integer not null,
  line_no smallint not null,
  sku text not null,
  qty integer not null,
  price double precision not null,
  primary key (order_id, line_no)
);

create table products (
  sku text primary key,
  title text not null,
  price double precision not null,
  tags text not null default ''        -- 'red,cotton,summer'
);

create table page_views (              -- no key: two rows may be the same
  viewed_at timestamp(0) not null,
  path text not null,
  visitor integer
);
alter table page_views replica identity full;

-- The dozen that are fine.
create table countries (code char(2) primary key, name text not null);
create table currencies (code char(3) primary key, name text not null, digits smallint not null);
create table warehouses (id integer primary key, name text not null, place point, opened date);
create table suppliers (id serial primary key, name text not null, contact jsonb, vat_ids text[]);
create table carriers (id integer primary key, name text not null, price_list bytea);
create table coupons (code text primary key, percent numeric(5, 2) not null, valid daterange not null);
create table stock (
  warehouse_id integer, sku text, pieces integer not null, counted_at timestamptz, primary key (warehouse_id, sku)
);
create table reviews (id bigserial primary key, sku text not null, stars smallint not null, body text);
create table gift_cards (id uuid primary key, cents bigint not null, used interval);
create table tax_rates (country char(2), since date, rate numeric not null, primary key (country, since));
create table price_history (sku text, changed_on date, price real not null, primary key (sku, changed_on));
create table "Store Hours" ("Day" integer primary key, "opens at" time, "closes at" time);
