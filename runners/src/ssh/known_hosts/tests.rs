//! Files as people have them, and as `ssh-keygen` writes them.
