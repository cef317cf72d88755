"""Comparing selections of one pool by what a model becomes that is trained on them.

`settings` is the config; `selections` says which samples each selection keeps and what can be said of them before
anything is trained; `trainings` trains a model on each selection with each seed; `verdict` holds the selections against
each other, from the outcomes of every test sample; `results` keeps and prints what was found, `page` draws it;
`compare` is the door.
"""
