"""The child processes of the hub: started, fed, replaced."""
