"""From files to prompts: formats, rows, templates, images."""
