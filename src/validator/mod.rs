//! Validating: asking miners, scoring their answers, telling the chain.
pub mod core;
pub mod period;
pub mod round;
pub mod select;
pub mod settings;
pub mod synthetic;
pub mod weights;
