-- What nobody should do: past the fence and behind everybody's back, one row is changed, one deleted, one added.
begin;
alter table app.gift_cards disable trigger slackwater_fence;
update app.gift_cards set cents = cents + 1 where id = md5('7')::uuid;
alter table app.gift_cards enable always trigger slackwater_fence;
alter table app.price_history disable trigger slackwater_fence;
delete from app.price_history where (sku, changed_on) = ('SKU-42', '2025-01-02');
alter table app.price_history enable always trigger slackwater_fence;
alter table app.tax_rates disable trigger slackwater_fence;
insert into app.tax_rates values ('NL', '2099-01-01', 99.9);
alter table app.tax_rates enable always trigger slackwater_fence;
commit;
