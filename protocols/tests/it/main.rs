//! One binary: known answers of others' systems, this protocol's golden bytes, properties, hostile input.

mod examples;
mod hostile;
mod known_answers;
mod properties;
mod vectors;
