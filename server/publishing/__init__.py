"""Students of the global model, published: `publish` makes them, `store` keeps the files, `catalog` lists them."""

__all__ = ["catalog", "publish", "store"]
