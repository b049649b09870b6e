"""Values that cross a process boundary. Nothing here does I/O or imports another part of the fabric."""
