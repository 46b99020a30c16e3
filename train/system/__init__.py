"""The process and its machine: allocator, cores, signals, files, clocks."""
