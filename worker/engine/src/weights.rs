//! Model files: GGUF to matrices and metadata.
