//! Network policy as an ordered, resolved form, the reference that says what it means, and the tables it
//! compiles to.

pub mod tables;
