"""Songs on disk: store, catalog, export, migrations."""
