-- One table of rows of about 200 bytes, one for the probes, and twenty small ones.
create table item (
  id bigint primary key, nm text not null, email text not null, amount text not null, status integer not null default 0,
  made timestamptz not null, note text not null
);
create table probe (id bigint primary key, sent double precision not null);
do $$ begin
  for n in 0..20 loop  -- t0 stands alone against t1 to t20 together
    execute format('create table t%s (id bigint primary key, nm text not null, email text not null, amount text not null, '
                   'status integer not null default 0, made timestamptz not null, note text not null)', n);
  end loop;
end $$;

create function item_row(n bigint) returns item language sql immutable return row(
  n, 'Name of item ' || n, 'Somebody.' || n || '@Example.COM', (n % 100000 / 100.0)::text, (n % 5)::integer,
  timestamptz '2025-01-01 00:00+00' + n * interval '1 second', repeat(md5(n::text), 3))::item;

-- `transactions` of ten rows: five new ones, and five that change.
create procedure work(transactions bigint, first bigint, existing bigint) language plpgsql as $$
begin
  for t in 0 .. transactions - 1 loop
    insert into item select (item_row(first + t * 5 + i)).* from generate_series(0, 4) i;
    update item set amount = (t % 977 / 10.0)::text, nm = 'Renamed ' || t
      where id = any (array(select (t * 5 + i) * 7919 % existing + 1 from generate_series(0, 4) i));
    commit;
  end loop;
end $$;

-- `transactions` of twenty rows, over `tables` tables from `first_table` on.
create procedure spread(transactions bigint, first bigint, first_table integer, tables integer) language plpgsql as $$
begin
  for t in 0 .. transactions - 1 loop
    for i in 0 .. tables - 1 loop
      execute format('insert into t%s select (item_row($1 + i)).* from generate_series(0, $2 - 1) i', first_table + i)
        using first + t * (20 / tables), 20 / tables;
    end loop;
    commit;
  end loop;
end $$;
