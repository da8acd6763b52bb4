"""What `bench`, `validate` and `server.load` share: the machine, memory, timings, and the conversation that is measured."""
