"""Loading: batches of one source, grouped into chunks and placed on the devices."""
