"""What people, and their simulated stand-ins, think of answers: utility, raters, the label store, the terminal."""
