"""The product's own tables beside Optuna's, as Alembic revisions."""
