"""The science of training two towers on pairs: losses, schedules, orders, augmentation. Pure torch and numpy."""
