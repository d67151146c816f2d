"""Tables, migrations and connections: SQLite by default, PostgreSQL by URL."""
