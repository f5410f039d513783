"""What results say: the table of the papers' claims, and the page that compares the methods."""
