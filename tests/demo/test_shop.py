from __future__ import annotations

from collections.abc import Callable

import pytest
from harness.databases import Database

from proxy.demo.facts import ServerFacts
from proxy.demo.shop import SHOPS, Shop, seed_script

FIGURES = """
select (select slug from shop), (select count(*) from products), (select count(*) from customers),
    (select count(*) from sales), (select sum(revenue) from best_sellers)
"""


@pytest.mark.parametrize("shop", SHOPS, ids=lambda shop: shop.slug)
def test_shop_is_filled_the_same_way_every_time(
    shop: Shop, pg17: ServerFacts, pg18: ServerFacts, make_database: Callable[..., Database]
) -> None:
    first, again = (make_database(server, shop.slug, seed=seed_script(shop)).psql(FIGURES) for server in (pg17, pg18))
    slug, products, customers, sales, revenue = first.split("|")
    assert (slug, int(products), int(customers), int(sales)) == (shop.slug, len(shop.goods), shop.customers, shop.sales)
    assert float(revenue) > 0
    assert again == first


def test_shops_spread_over_both_servers_and_differ() -> None:
    assert {shop.postgres for shop in SHOPS} == {17, 18}
    assert len({shop.slug for shop in SHOPS}) == len({shop.sales for shop in SHOPS}) == 4
