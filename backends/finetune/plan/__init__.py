"""What a run will need, before anything of it starts: parameters, memory, steps, time, disk."""
