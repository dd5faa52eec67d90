"""How reports are written, whoever writes them: blocks of a document, colours, pictures."""
