"""Sources written anew: as tars, parquet files or a folder, in parallel, so that a kill costs only what is begun."""
