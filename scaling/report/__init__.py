"""What is made of a sweep's folder: its report, tables and figures."""
