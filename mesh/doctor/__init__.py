"""What is wrong with a machine, and what helps: `facts` looks, `checks` judges, `probe` tries the kernel out."""
