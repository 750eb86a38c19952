"""Golden vectors: what is in spec/vectors, how it is made, read and compared. Clauses: VEC-1..VEC-7."""
