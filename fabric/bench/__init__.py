"""What ``fabric bench`` measures, and what it says of two runs: values in, values out."""
