"""What is wrong with a machine, and what helps: `look` at it, `checks` judge, `probe` tries the kernel out."""
