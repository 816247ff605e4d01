"""The shop's orders of a year, as a SQLite file: something real to ask questions about."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

SHOP = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city TEXT);
CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, price REAL /* in euros */);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customers,
    product_id INTEGER REFERENCES products, pairs INTEGER,
    status TEXT /* open, delivered or returned */, ordered_on TEXT /* such as 2026-12-31 */);

INSERT INTO customers (name, city) VALUES ('Ada', 'Utrecht'), ('Bob', 'Delft'), ('Cyd', 'Utrecht');
INSERT INTO products (name, price) VALUES ('Trail runner', 89.5), ('Leather boot', 139.0);
WITH RECURSIVE day(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM day WHERE n < 364)
INSERT INTO orders SELECT n + 1, 1 + n % 3, 1 + n % 2, 1 + n % 4,
    CASE n % 9 WHEN 0 THEN 'open' WHEN 1 THEN 'returned' ELSE 'delivered' END,
    date('2026-01-01', n || ' days') FROM day;
"""


def create_orders(path: Path) -> None:
    """Write one order a day to a SQLite file, the same bytes at every call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.{os.getpid()}")
    with closing(sqlite3.connect(":memory:")) as shop:
        shop.executescript(SHOP)
        written.write_bytes(shop.serialize())
    written.replace(path)  # in one step: another process may be reading the file
