"""The small shop that every tenant of the demonstration has, with other goods and figures for each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shop:
    """One demo tenant: where it lives and what it sells (names and prices)."""

    slug: str
    name: str
    postgres: int
    customers: int
    sales: int
    goods: tuple[tuple[str, str], ...]

    @property
    def database(self) -> str:
        """The physical name of its database, which is not what its applications ask for."""
        return f"{self.slug}_shop"

    @property
    def role(self) -> str:
        """The role that owns the database, and as which the proxy logs in."""
        return f"{self.slug}_owner"


SHOPS = (
    Shop(
        "acme",
        "Acme Corporation",
        18,
        40,
        400,
        (("Anvil", "129.00"), ("Rocket skates", "349.50"), ("Giant magnet", "89.90"), ("Jet spray", "24.00")),
    ),
    Shop(
        "globex",
        "Globex",
        17,
        25,
        250,
        (("Weather machine", "98000.00"), ("Hammock", "79.00"), ("Doomsday planner", "19.95")),
    ),
    Shop(
        "initech",
        "Initech",
        18,
        60,
        900,
        (("Cover sheet (500)", "7.50"), ("Red stapler", "14.99"), ("Printer", "219.00"), ("Desk lamp", "32.00")),
    ),
    Shop(
        "umbrella",
        "Umbrella",
        17,
        15,
        120,
        (("Umbrella, large", "29.00"), ("Umbrella, small", "19.00"), ("Herbal tea", "6.40"), ("Lab coat", "45.00")),
    ),
)

SCHEMA = """
create table shop (slug text primary key, name text not null);
create table products (
    id int generated always as identity primary key, name text not null unique, price numeric(10, 2) not null);
create table customers (
    id int generated always as identity primary key, name text not null, city text not null, joined date not null);
create table sales (
    id int generated always as identity primary key,
    customer_id int not null references customers, product_id int not null references products,
    quantity int not null check (quantity > 0), sold_at timestamptz not null);
create index on sales (customer_id);
create view best_sellers as
    select p.name, sum(s.quantity) as sold, sum(s.quantity * p.price) as revenue
    from sales s join products p on p.id = s.product_id group by p.name order by revenue desc;
"""

FIRST_NAMES = ("Ada", "Bruno", "Chiara", "Dmitri", "Elif", "Farid", "Grace", "Hana")
LAST_NAMES = ("Abel", "Brandt", "Costa", "Dupont", "Eriksen", "Fischer", "Garcia")
CITIES = ("Berlin", "Lisbon", "Oslo", "Paris", "Vienna")


def seed_script(shop: Shop) -> str:
    """The SQL that builds and fills a shop in an empty database; the same every time."""
    goods = ", ".join(f"({quoted(name)}, {price})" for name, price in shop.goods)
    return f"""{SCHEMA}
select setseed({shop.sales / 1000});
insert into shop values ({quoted(shop.slug)}, {quoted(shop.name)});
insert into products (name, price) values {goods};
insert into customers (name, city, joined)
    select {picked(FIRST_NAMES, "i")} || ' ' || {picked(LAST_NAMES, "i")},
        {picked(CITIES, f"floor(random() * {len(CITIES)})::int")}, date '2024-01-01' + i
    from generate_series(1, {shop.customers}) i;
insert into sales (customer_id, product_id, quantity, sold_at)
    select 1 + floor(random() * {shop.customers})::int, 1 + floor(random() * {len(shop.goods)})::int,
        1 + floor(random() * 5)::int, timestamptz '2025-01-01 08:00Z' + i * interval '3 hours'
    from generate_series(1, {shop.sales}) i;
analyze;
"""


def creation_script(shop: Shop, password: str) -> str:
    """The SQL that creates a shop's role and empty database, as the superuser."""
    return (
        f"create role {shop.role} login password {quoted(password)};\n"
        f"create database {shop.database} owner {shop.role} template template0;\n"
    )


def quoted(text: str) -> str:
    """A string constant of SQL, for text without backslashes."""
    return "'" + text.replace("'", "''") + "'"


def picked(texts: tuple[str, ...], number: str) -> str:
    """The SQL that picks one of the texts by an integer expression, counted from 0 and round and round."""
    return f"(array[{', '.join(map(quoted, texts))}])[1 + {number} % {len(texts)}]"
