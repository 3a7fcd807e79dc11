"""Training of the zoo: a task, a loop that can be interrupted and resumed exactly, and named recipes."""
