"""Made by proto/generate; do not edit."""
