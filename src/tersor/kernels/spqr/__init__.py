"""The `spqr` layout in memory: codes on two-level grids in tensor-core order, outliers apart."""
