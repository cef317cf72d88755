"""Writing what was kept, in the formats that trainers read. `settings` names them; each has a module of its own."""
