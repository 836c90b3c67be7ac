"""Questions to chat models on servers: poems to finish, poems to mark."""
