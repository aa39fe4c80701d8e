create table item (
  id bigint primary key, name text not null, email text not null, amount numeric(12, 2) not null,
  made timestamptz not null, note text not null
);
create table probe (id bigint primary key, sent double precision not null);
do $$ begin
  for n in 0..20 loop
    execute format('create table t%s (like item including indexes)', n);
  end loop;
end $$;
