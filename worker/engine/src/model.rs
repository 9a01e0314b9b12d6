//! Model families: config-driven decoders over the kernels.
