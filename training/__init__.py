"""How a student changes: data mix, LoRA SFT, evaluation, gate, MLflow registry. Only importer of trl and
mlflow."""
