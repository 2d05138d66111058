"""`tersor compress --bits`, `--max-kl`, ...: a smaller model for a loss that is chosen and measured.

goal      what a user can ask for, and with which text
opened    the model, whole or block by block, its tokens, and where its matrices are in the checkpoint
attempts  quantise by an assignment of methods, measure, and keep both on disk
search    from a goal to the assignment that reaches it
job       all of it, then the checkpoint, resumable throughout
"""
