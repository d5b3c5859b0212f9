"""The choice between candidates: folds, scores, corrected gains, keep or replace."""
