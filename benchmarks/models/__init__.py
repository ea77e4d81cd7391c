"""Networks written from their published architectures, to compile and to measure."""
