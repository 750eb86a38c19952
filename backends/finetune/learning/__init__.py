"""An assistant: a folder that is taught one task after another, and never made worse at those it has learned."""
