//! What `banger-system` and its clients say to each other on D-Bus.
