"""Publishing students of the global model.

`publish.Publisher` makes a student for each tier, `store.ModelStore` keeps their bundles on disk, and `catalog.Catalog`
lists these for the hub.
"""

__all__ = ["catalog", "publish", "store"]
