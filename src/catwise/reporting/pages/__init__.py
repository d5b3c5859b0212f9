"""Documents as pages: of a run, of an evaluation, of an audit."""
