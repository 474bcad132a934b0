"""Teachers: planners that ask a large language model. Prompts out, answers in, plans as every planner makes them."""
